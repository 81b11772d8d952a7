import { EventSource } from "eventsource";
import { report, url } from "./report.mjs";

// In a browser it wraps the browser's own.
globalThis.EventSource = EventSource;
const { default: ReconnectingEventSource } = await import("reconnecting-eventsource");

const source = new ReconnectingEventSource(url);
source.onmessage = ({ data, lastEventId }) => report("message", { data, id: lastEventId });
source.onerror = () => report(source.readyState === 2 ? "closed" : "error");
