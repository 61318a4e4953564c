// A component that shows a call. Tests use `call`, which is what the hook returned last, and read all `states`.

import { createFalClient } from "@fal-ai/client";
import { withSession } from "@fal-proxy/client";
import { useFalProxy } from "@fal-proxy/client/react";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

const { proxy, endpoint } = Object.fromEntries(new URLSearchParams(location.search));
const fal = createFalClient(withSession("/session", { proxyUrl: `${proxy}/api/fal/proxy` }));
const root = createRoot(document.querySelector("main"));

function Ask() {
  const call = useFalProxy(fal, endpoint);
  const { status, position, logs, result, error, requestId, busy } = call;
  const state = { status, position, logs: logs.map(({ message }) => message), result, error, requestId, busy };
  if (JSON.stringify(state) !== JSON.stringify(window.states.at(-1))) window.states.push(state);
  window.call = call;
  return <output>{status}</output>;
}

window.states = [];
window.leave = () => root.unmount();
window.picture = async () => (await fetch("/chelsea.png")).blob();
root.render(<StrictMode><Ask /></StrictMode>);
