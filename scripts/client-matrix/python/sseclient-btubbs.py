"""sseclient (0.0.x)."""

from report import URL, finish, report
from sseclient import SSEClient


def run():
    for event in SSEClient(URL):
        report("message", type=event.event, data=event.data, id=event.id)


finish(run)
