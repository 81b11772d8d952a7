import { Centrifuge } from "centrifuge";
import WebSocket from "ws";
import { report, url } from "./report.mjs";

const client = new Centrifuge(url, { websocket: WebSocket });
const subscription = client.newSubscription("live");
subscription.on("publication", ({ data, tags }) => {
  report(tags?.encoding === "base64" ? "binary" : "message", { data });
});
client.on("error", ({ error }) => report("error", { detail: `${error.code} ${error.message}` }));
client.on("disconnected", ({ code, reason }) => report("closed", { code, detail: reason }));
subscription.subscribe();
client.connect();
