const token = new URL(url).searchParams.get("token") ?? undefined;
import("/livebridge.js").then(({ connect }) => {
  const feed = connect({ channels: ["live"], token });
  feed.on("message", ({ data }) => {
    if (data instanceof Uint8Array) report("binary", { data: base64(data) });
    else report("message", { data });
  });
  feed.on("state", ({ state, reason }) => state === "closed" && report("closed", { detail: reason }));
});
