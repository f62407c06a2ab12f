"""Everything lives in the plugin and in `fixtures/`; pytest wants its own plugins named here."""

pytest_plugins = ["fixtures.session", "fixtures.project", "fixtures.browser", "fixtures.scheduling", "pytester"]
