import { Centrifuge } from "centrifuge";
import WebSocket from "ws";
import { report, url } from "./report.mjs";

const client = new Centrifuge(url, { websocket: WebSocket });
const map = client.newMapSubscription("sheet:live");
const show = ({ data, tags }) => report(tags?.encoding === "base64" ? "binary" : "message", { data });
map.on("sync", ({ entries }) => entries.forEach(show));
map.on("update", show);
client.on("error", ({ error }) => report("error", { detail: `${error.code} ${error.message}` }));
client.on("disconnected", ({ code, reason }) => report("closed", { code, detail: reason }));
map.subscribe();
client.connect();
