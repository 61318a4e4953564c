from fal_proxy_sessions import session_answer
from fastapi import Cookie, FastAPI, Response

# Stand-in for your own login. Replace it with what knows the user of a request.
USERS = {"login-of-alice": "alice"}

app = FastAPI()


@app.post("/api/fal/session")
def session(login: str = Cookie("")) -> Response:
    return Response(*session_answer(USERS.get(login)))
