"""The dashboard: pages rendered on the server, readable without JavaScript, live with it.

`ROUTES` go into the admin application behind `api.guard`.
"""

from edgekit_fleet.web.pages import ROUTES

__all__ = ["ROUTES"]
