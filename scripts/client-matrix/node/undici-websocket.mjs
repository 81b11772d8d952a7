import { WebSocket } from "undici";
import { frame, report, url } from "./report.mjs";

const socket = new WebSocket(url);
socket.binaryType = "arraybuffer";
socket.onmessage = ({ data }) => frame(data);
socket.onclose = ({ code, reason }) => report("closed", { code, detail: reason });
