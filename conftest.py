"""Everything lives in the plugin and in `fixtures/`."""

pytest_plugins = ["fixtures.session"]
