from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from fal_proxy_sessions import session_answer

# Stand-in for your own login. With Django's, the user is `request.user.pk if request.user.is_authenticated else None`.
USERS = {"login-of-alice": "alice"}


@csrf_exempt  # A page of another site cannot read the answer.
@require_POST
def session(request: HttpRequest) -> HttpResponse:
    body, status, headers = session_answer(USERS.get(request.COOKIES.get("login", "")))
    return HttpResponse(body, status=status, headers=headers)
