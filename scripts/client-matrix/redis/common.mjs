// What every Node publisher here does: connect, wait for a line, publish, say what came of it.
import { once } from "node:events";

export const port = Number(process.argv[2]);
export const mode = process.argv[3];

/** Runs `call` (the arguments after FCALL) twice. */
export async function publish(call) {
  await call("livebridge_publish", "live", ["first"]);
  process.stdout.write("ready\n");
  await once(process.stdin, "data");
  try {
    await call("livebridge_publish", "live", mode === "id" ? ["second", "id", "order-17"] : ["second"]);
    process.stdout.write("answered\n");
  } catch (error) {
    process.stdout.write(`raised ${error.name}: ${error.message}\n`);
  }
  process.exit(0);
}
