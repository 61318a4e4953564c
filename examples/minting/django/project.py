"""The smallest project that runs the view. Yours exists: add the line of `urlpatterns` there."""

from django.urls import path
from views import session

SECRET_KEY = "stand-in-that-protects-nothing-here"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = __name__
MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware"]

urlpatterns = [path("api/fal/session", session)]
