"""``live_server`` of pytest-django and pytest-flask, unchanged, for a browser elsewhere."""

from __future__ import annotations

import pytest
from switched import SYNC, Suite

pytestmark = pytest.mark.slow

DJANGO = """
    import os

    import pytest
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # the others take their time
        ROOT_URLCONF="pages",
        SECRET_KEY="secret",
        STATIC_URL="/static/",
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    )
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"  # as all do who use pytest-playwright with Django
"""
DJANGO_PAGES = '''
    from django.contrib.auth import authenticate, login
    from django.contrib.auth.decorators import login_required
    from django.http import HttpResponse
    from django.shortcuts import redirect
    from django.template import engines
    from django.urls import path

    FORM = engines["django"].from_string("""
        <form method="post">{% csrf_token %}<input name="name"><input name="password"><button>log in</button></form>
    """)

    def enter(request):
        if request.method == "POST":
            login(request, authenticate(username=request.POST["name"], password=request.POST["password"]))
            return redirect(request.GET["next"])
        return HttpResponse(FORM.render({}, request))

    @login_required(login_url="/login")
    def home(request):
        return HttpResponse(f"<h1>Hello {request.user.get_username()}</h1>")

    urlpatterns = [path("", home), path("login", enter)]
'''
DJANGO_TEST = """
    def test_login(page, live_server, django_user_model):
        django_user_model.objects.create_user("ann", password="pass")
        page.set_default_timeout(15_000)
        page.goto(live_server.url)
        page.locator("[name=name]").fill("ann")
        page.locator("[name=password]").fill("pass")
        page.get_by_text("log in").click()
        assert page.locator("h1").inner_text() == "Hello ann"
        assert "sessionid" in {one["name"] for one in page.context.cookies()}
"""
FLASK = """
    import flask
    import pytest

    @pytest.fixture(scope="session")
    def app():
        app = flask.Flask("shop")
        app.secret_key = "secret"

        @app.route("/")
        def home():
            return flask.render_template_string(
                '<h1>{{ session.get("name") }}</h1><form method="post" action="/name"><input name="name"></form>'
            )

        @app.route("/name", methods=["POST"])
        def name():
            flask.session["name"] = flask.request.form["name"]
            return flask.redirect(flask.url_for("home"))

        return app
"""
FLASK_TEST = """
    import flask
    import pytest

    @pytest.mark.usefixtures("live_server")
    def test_session(page):
        page.goto(flask.url_for("home", _external=True))
        page.locator("[name=name]").fill("ann")
        page.keyboard.press("Enter")
        page.get_by_text("ann").wait_for()
"""


def test_django(suite: Suite):
    pytest.importorskip("pytest_django")
    suite.write(DJANGO, "conftest.py")
    suite.write(DJANGO_PAGES, "pages.py")
    suite.write(DJANGO_TEST)
    plugins = (*SYNC, "-p", "pytest_django.plugin", "--no-migrations")
    run = suite.run_process("worker", "--anchor-forward", "on", plugins=plugins)
    assert run.outcomes == {"passed": 1}, run.out


def test_flask(suite: Suite):
    pytest.importorskip("pytest_flask")
    suite.write(FLASK, "conftest.py")
    suite.write(FLASK_TEST)
    run = suite.run_process("test", "--anchor-forward", "on", plugins=(*SYNC, "-p", "pytest_flask.plugin"))
    assert run.outcomes == {"passed": 1}, run.out
