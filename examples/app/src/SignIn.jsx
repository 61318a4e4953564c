// Stand-in for your own login: replace this file with it.

import { useState } from "react";

/** The name of the signed-in user; null if there is none. */
export async function findUser() {
  return (await (await fetch("/api/login")).json()).user;
}

export async function signOut() {
  await fetch("/api/login", { method: "DELETE" });
}

export function SignIn({ onSignedIn }) {
  const [refused, setRefused] = useState(false);

  async function signIn(form) {
    const body = JSON.stringify(Object.fromEntries(form));
    const answer = await fetch("/api/login", { method: "POST", headers: { "content-type": "application/json" }, body });
    if (answer.ok) onSignedIn((await answer.json()).user);
    else setRefused(true);
  }

  return (
    <form action={signIn}>
      <h1>Sign in</h1>
      <label>Name <input name="user" autoComplete="username" required /></label>
      <label>Password <input name="password" type="password" autoComplete="current-password" required /></label>
      <button>Sign in</button>
      {refused && <p role="alert">Name or password is wrong.</p>}
    </form>
  );
}
