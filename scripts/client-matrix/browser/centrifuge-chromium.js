const client = new Centrifuge(url);
const subscription = client.newSubscription("live");
subscription.on("publication", ({ data, tags }) => {
  report(tags?.encoding === "base64" ? "binary" : "message", { data });
});
client.on("error", ({ error }) => report("error", { detail: `${error.code} ${error.message}` }));
client.on("disconnected", ({ code, reason }) => report("closed", { code, detail: reason }));
subscription.subscribe();
client.connect();
