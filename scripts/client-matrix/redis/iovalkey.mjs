import Redis from "iovalkey";
import { mode, port, publish } from "./common.mjs";

const client = new Redis({ port, ...(mode === "off" && { maxRetriesPerRequest: 0 }) });
client.on("error", () => {});
await publish((name, key, rest) => client.call("FCALL", name, 1, key, ...rest));
