"""A channel for each user of Django, in one file: python django_users.py migrate; gunicorn django_users:application"""

import os
import sys
import time

import django
import jwt
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import include, path
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

database = conninfo_to_dict(os.environ["DATABASE_URL"])
settings.configure(
    SECRET_KEY="only for this example",
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    LOGIN_REDIRECT_URL="/inbox",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database.pop("dbname"),
            "OPTIONS": database,
            "ATOMIC_REQUESTS": True,
        }
    },
)
django.setup()

from django.contrib.auth.decorators import login_required  # noqa: E402 - needs the settings

TOKEN_SECONDS = 900


def notify(user, event_type, payload):
    """Publish to a user's channel, in the transaction of the request."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT sse_pg.publish(%s, %s, %s)", [f"user.{user.pk}", event_type, Jsonb(payload)])


@login_required
def live(request):
    """Give the browser a token for the user's own channel, as a cookie for the bus alone."""
    token = jwt.encode(
        {
            "sub": str(request.user.pk),
            "exp": int(time.time()) + TOKEN_SECONDS,
            "sse_pg": {"subscribe": [f"user.{request.user.pk}", "news"]},
        },
        os.environ["SSE_PG_TOKEN_SECRET"],
        algorithm="HS256",
    )
    response = HttpResponse(status=204)
    response.set_cookie(
        "sse_pg_token",
        token,
        max_age=TOKEN_SECONDS,
        path="/api/events",
        httponly=True,
        secure=request.is_secure(),
        samesite="Strict",
    )
    return response


@login_required
def inbox(request):
    return HttpResponse(PAGE.replace("CHANNEL", f"user.{request.user.pk}"))


PAGE = """<!doctype html>
<ul id="messages"></ul>
<script type="module">
  const renew = () => fetch('/live')
  await renew()
  setInterval(renew, 600_000)  // before the cookie expires: an EventSource gives up after a 401
  const source = new EventSource('/api/events/stream?channels=CHANNEL,news')
  source.addEventListener('MESSAGE', (event) => {
    const item = document.createElement('li')
    item.textContent = JSON.parse(event.data).text
    document.getElementById('messages').append(item)
  })
</script>
"""

urlpatterns = [path("live", live), path("inbox", inbox), path("accounts/", include("django.contrib.auth.urls"))]
application = get_wsgi_application()

if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
