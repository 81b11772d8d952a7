import ReconnectingWebSocket from "reconnecting-websocket";
import WebSocket from "ws";
import { frame, report, url } from "./report.mjs";

const socket = new ReconnectingWebSocket(url, [], { WebSocket });
socket.binaryType = "arraybuffer";
socket.onmessage = ({ data }) => frame(data);
socket.onclose = ({ code }) => report("error", { code });
