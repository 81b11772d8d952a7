"""websocket-client, with the setting that makes it reconnect."""

import websocket
from report import URL, finish, frame, report


def run():
    app = websocket.WebSocketApp(
        URL,
        on_data=lambda _, data, kind, __: frame(data if kind == websocket.ABNF.OPCODE_TEXT else bytes(data)),
        on_error=lambda _, error: report("error", detail=str(error)),
    )
    app.run_forever(reconnect=1)


finish(run)
