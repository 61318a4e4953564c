from fal_proxy_sessions import Answer, session_answer
from flask import Flask, request

# Stand-in for your own login, such as Flask-Login. Replace it with what knows the user of a request.
USERS = {"login-of-alice": "alice"}

app = Flask(__name__)


@app.post("/api/fal/session")
def session() -> Answer:
    return session_answer(USERS.get(request.cookies.get("login", "")))
