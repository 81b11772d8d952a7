import { connect, CommandError, PublishError, type Message, type Person } from "livebridge";

const url = new URL("/", location.href);
const show = (who: string) => ({ data }: Message) => console.log(`${who} ${JSON.stringify(data)}`);

const feed = connect({ url, channels: ["live"], token: async () => undefined });
feed.on("message", show("own"));
const shared = connect({ url, channels: ["live"], shared: true });
shared.on("message", show("shared"));

const opened = [feed, shared].map((each) => new Promise<void>((resolve) => each.on("state", ({ state }) => state === "open" && resolve())));
Promise.all(opened)
  .then(() => feed.publish({ n: 1 }))
  .then(({ offset }) => console.log(`published ${offset}`))
  .catch((error: PublishError | CommandError) => console.log(`failed ${error.code}`));

// What must not be taken for right.
export async function wrong() {
  // @ts-expect-error there is no such event
  feed.on("nothing", () => {});
  // @ts-expect-error `last` is a number
  await feed.subscribe("news", { last: "10" });
  const people: Person[] = await feed.presence("news");
  // @ts-expect-error a person has no name
  return people[0].name;
}
