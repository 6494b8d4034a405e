"""Orders in Django, in one file: gunicorn django_app:application"""

import json
import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.utils.html import format_html, json_script
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

database = conninfo_to_dict(os.environ["DATABASE_URL"])
settings.configure(
    SECRET_KEY="only for this example",
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database.pop("dbname"),
            "OPTIONS": database,
            "ATOMIC_REQUESTS": True,  # each request is a transaction, rolled back on an exception
        }
    },
)
django.setup()


def place(request):
    item = json.loads(request.body)["item"]
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (item) VALUES (%s) RETURNING id", [item])
        order = {"id": cursor.fetchone()[0], "item": item}
        cursor.execute("SELECT sse_pg.publish('orders', 'PLACED', %s)", [Jsonb(order)])
    if item == "nothing":
        raise ValueError("nothing cannot be ordered")
    return JsonResponse(order, status=201)


def orders(request):
    with connection.cursor() as cursor:
        # Must be the first statement of the transaction. All statements after it see the same snapshot.
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SELECT item FROM orders ORDER BY id")
        items = [item for (item,) in cursor.fetchall()]
        cursor.execute("SELECT sse_pg.position()")
        (position,) = cursor.fetchone()
    return HttpResponse(format_html(PAGE, items=json_script(items, "items"), position=position))


PAGE = """<!doctype html>
<body data-position="{position}">
<ul id="orders"></ul>
{items}
<script type="module" src="/static/orders.js"></script>
"""

urlpatterns = [path("orders/new", place), path("orders", orders)]
application = get_wsgi_application()
