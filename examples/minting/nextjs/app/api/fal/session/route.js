import { cookies } from "next/headers";
import { respondWithSession } from "@fal-proxy/client/server";

// Stand-in for your own login, such as Auth.js or Clerk. Replace it with what knows the user of a request.
const users = new Map([["login-of-alice", "alice"]]);
const signedInUser = async () => users.get((await cookies()).get("login")?.value);

export async function POST() {
  return respondWithSession(await signedInUser());
}
