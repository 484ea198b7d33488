"""What `edgekit.<name>` is, for type checkers; at run time the names are loaded on first use."""

from edgekit.build.api import Built as Built
from edgekit.build.api import bench as bench
from edgekit.build.api import build as build
from edgekit.build.api import compare as compare
from edgekit.build.api import compress as compress
from edgekit.build.api import convert as convert
from edgekit.build.api import optimize as optimize
from edgekit.build.api import rebuild as rebuild
from edgekit.client import AsyncClient as AsyncClient
from edgekit.client import Client as Client

__version__: str
