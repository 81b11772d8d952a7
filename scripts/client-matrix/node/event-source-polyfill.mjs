import polyfill from "event-source-polyfill";
import { report, url } from "./report.mjs";

const source = new polyfill.EventSourcePolyfill(url);
source.onmessage = ({ data, lastEventId }) => report("message", { data, id: lastEventId });
source.onerror = () => report(source.readyState === 2 ? "closed" : "error");
