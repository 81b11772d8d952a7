import { WebSocket as PartySocket } from "partysocket";
import WebSocket from "ws";
import { frame, report, url } from "./report.mjs";

const socket = new PartySocket(url, [], { WebSocket });
socket.binaryType = "arraybuffer";
socket.onmessage = ({ data }) => frame(data);
socket.onclose = ({ code }) => report("error", { code });
