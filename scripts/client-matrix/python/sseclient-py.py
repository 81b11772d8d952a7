"""sseclient-py over requests: a parser of a response; reconnecting is left to the program."""

import requests
import sseclient
from report import URL, finish, report


def run():
    response = requests.get(URL, stream=True)
    response.raise_for_status()
    for event in sseclient.SSEClient(response).events():
        report("message", type=event.event, data=event.data, id=event.id)


finish(run)
