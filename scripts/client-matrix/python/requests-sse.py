"""requests-sse."""

from report import URL, finish, report
from requests_sse import EventSource


def run():
    with EventSource(URL) as source:
        for event in source:
            report("message", type=event.type, data=event.data, id=event.last_event_id)


finish(run)
