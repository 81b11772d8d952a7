import WebSocket from "ws";
import { frame, report, url } from "./report.mjs";

const socket = new WebSocket(url);
socket.on("message", (data, isBinary) => frame(isBinary ? data : data.toString()));
socket.on("error", (error) => report("error", { detail: String(error) }));
socket.on("close", (code, reason) => report("closed", { code, detail: reason.toString() }));
