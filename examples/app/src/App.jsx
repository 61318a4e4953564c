import { createFalClient } from "@fal-ai/client";
import { withSession } from "@fal-proxy/client";
import { useEffect, useMemo, useState } from "react";
import { Ask } from "./Ask.jsx";
import { findUser, SignIn, signOut } from "./SignIn.jsx";

const proxyUrl = import.meta.env.VITE_FAL_PROXY_URL ?? "/api/fal/proxy";

export function App() {
  const [user, setUser] = useState(undefined); // null: signed out
  useEffect(() => void findUser().then(setUser), []);

  if (user === undefined) return null;
  if (user === null) return <SignIn onSignedIn={setUser} />;
  return <Signed key={user} user={user} onSignedOut={() => setUser(null)} />;
}

function Signed({ user, onSignedOut }) {
  // One client for each user, as it keeps the user's session.
  const fal = useMemo(() => createFalClient(withSession("/api/fal/session", { proxyUrl })), []);
  const leave = () => signOut().then(onSignedOut);
  return (
    <>
      <header>
        <h1>Ask about a picture</h1>
        <p>{user} <button type="button" onClick={leave}>Sign out</button></p>
      </header>
      <Ask fal={fal} onSignedOut={onSignedOut} />
    </>
  );
}
