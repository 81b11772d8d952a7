"""httpx-sse: a parser of a response; reconnecting is left to the program."""

import httpx
from httpx_sse import connect_sse
from report import URL, finish, report


def run():
    # httpx gives up on a quiet response after 5 seconds, unless it is told otherwise.
    with httpx.Client(timeout=None) as client, connect_sse(client, "GET", URL) as source:
        for event in source.iter_sse():
            report("message", type=event.event, data=event.data, id=event.id)


finish(run)
