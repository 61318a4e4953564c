"""The backend of the app: it signs users in, gives them sessions of fal-proxy, and serves the built page."""

import hmac
import os
from pathlib import Path

from fal_proxy_sessions import session_answer
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware
from starlette.staticfiles import StaticFiles

PAGE = Path(__file__).parents[1] / "dist"
# Stand-in for your own users.
USERS = {"alice": "wonderland", "bob": "builder"}

app = FastAPI()
# The login is in a signed cookie. On https, add `https_only=True`.
app.add_middleware(SessionMiddleware, secret_key=os.environ["LOGIN_SECRET"], same_site="lax")


class Login(BaseModel):
    user: str
    password: str


@app.get("/api/login")
def show_login(request: Request) -> dict[str, str | None]:
    return {"user": request.session.get("user")}


@app.post("/api/login")
def sign_in(login: Login, request: Request) -> dict[str, str]:
    if login.user not in USERS or not hmac.compare_digest(USERS[login.user].encode(), login.password.encode()):
        raise HTTPException(401, "Name or password is wrong.")
    request.session["user"] = login.user
    return {"user": login.user}


@app.delete("/api/login")
def sign_out(request: Request) -> None:
    request.session.clear()


@app.post("/api/fal/session")
def session(request: Request) -> Response:
    return Response(*session_answer(request.session.get("user")))


# Without a built page, Vite's own server shows it.
app.mount("/", StaticFiles(directory=PAGE, html=True, check_dir=False))
