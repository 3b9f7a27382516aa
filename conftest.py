# pytest accepts `pytest_plugins` only in the top-level conftest.py, and the tests of a plugin run pytest within pytest.
# Lying here, this file also puts the checkout on `sys.path`, so that the tests run without anything being installed.
pytest_plugins = ["pytester"]
