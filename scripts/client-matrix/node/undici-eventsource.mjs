import { EventSource } from "undici";
import { report, url } from "./report.mjs";

const source = new EventSource(url);
source.onmessage = ({ data, lastEventId }) => report("message", { data, id: lastEventId });
source.onerror = () => report(source.readyState === EventSource.CLOSED ? "closed" : "error");
// While it waits to reconnect it does not keep the process running, so something else has to.
setInterval(() => {}, 60_000);
