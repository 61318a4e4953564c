import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `npm run dev` serves the page, and passes the backend's own routes on to it.
const backend = "http://localhost:3000";

export default defineConfig({
  plugins: [react()],
  server: { proxy: { "/api/login": backend, "/api/fal/session": backend } },
});
