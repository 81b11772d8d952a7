import com.google.gson.Gson;
import io.github.centrifugal.centrifuge.ClientState;
import io.github.centrifugal.centrifuge.ConnectionTokenEvent;
import io.github.centrifugal.centrifuge.ConnectionTokenGetter;
import io.github.centrifugal.centrifuge.HistoryOptions;
import io.github.centrifugal.centrifuge.Options;
import io.github.centrifugal.centrifuge.StreamPosition;
import io.github.centrifugal.centrifuge.TokenCallback;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;

/**
 * What docs/centrifuge.md promises of the SDK for Java, which speaks Protobuf, one check after the other. Prints a line for each.
 * The argument says where the instances are (scripts/client-matrix/matrix/native_sdks.py).
 */
public class Checks {
  /** See the program for Go. */
  static class Setup {
    String url, http, closing, secret;
    int[] pids, back, away;
  }

  interface Check {
    void run() throws Exception;
  }

  static Setup setup;

  public static void main(String[] arguments) {
    setup = new Gson().fromJson(arguments[0], Setup.class);
    Map<String, Check> checks = new LinkedHashMap<>();
    checks.put("connects, publishes and reads the history", Checks::publishesAndReads);
    checks.put("carries bytes as they are", Checks::carriesBytes);
    checks.put("has many channels, and changes them at any time", Checks::hasManyChannels);
    checks.put("is told what it may not do", Checks::isToldWhatItMayNot);
    checks.put("sees who is there, and who comes and goes", Checks::seesWhoIsThere);
    checks.put("leaves for good with a token that is not valid", Checks::leavesWithAnInvalidToken);
    checks.put("is closed with a message over the limit", Checks::isClosedWithAMessageOverTheLimit);
    checks.put("gets a new token in time and stays", Checks::renewsItsToken);
    checks.put("gets a new token when it comes with an old one", Checks::replacesAnOldToken);
    checks.put("comes back or stays away as the close code says", Checks::heedsCloseCodes);
    checks.put("notices that the server is silent, and goes elsewhere", Checks::noticesSilence);
    checks.put("goes elsewhere when an instance stops, and misses nothing", () -> survives("TERM", 0, 3001));
    checks.put("goes elsewhere when an instance dies, and misses nothing", () -> survives("KILL", 1, 1));
    checks.forEach((name, check) -> {
      long began = System.nanoTime();
      String detail = "";
      try {
        check.run();
      } catch (Throwable failure) {
        detail = failure.toString();
      }
      double seconds = (System.nanoTime() - began) / 1e9;
      System.out.println(new Gson().toJson(Map.of("check", name, "ok", detail.isEmpty(), "detail", detail, "seconds", seconds)));
    });
    System.exit(0);
  }

  static void publishesAndReads() throws Exception {
    try (Sdk sdk = Sdk.connected(Sdk.options(Sdk.token(3600)))) {
      Sdk.Channel one = sdk.subscribe("java:one");
      Sdk.<Object>result(done -> one.subscription.publish(bytes("{\"number\":1}"), done::accept));
      Sdk.<Object>result(done -> sdk.client.publish("java:one", bytes("\"two\""), done::accept));
      equal("the publications", one.data(2), List.of("{\"number\":1}", "\"two\""));
      var newest = Sdk.history(one, new HistoryOptions.Builder().withLimit(0).build());
      equal("the position", List.of(newest.getOffset(), newest.getPublications().size()), List.of(2L, 0));
      var page = Sdk.history(one, new HistoryOptions.Builder().withLimit(10).withReverse(true).build());
      equal("the history", page.getPublications().stream().map(held -> held.getOffset()).toList(), List.of(2L, 1L));
      var since = new StreamPosition(1, page.getEpoch());
      var rest = Sdk.history(one, new HistoryOptions.Builder().withLimit(10).withSince(since).build());
      equal("the rest of it", rest.getPublications().stream().map(held -> text(held.getData())).toList(), List.of("\"two\""));
      var other = new HistoryOptions.Builder().withLimit(10).withSince(new StreamPosition(1, "1")).build();
      equal("another epoch", Sdk.code(done -> one.subscription.history(other, done::accept)), 112);
    }
  }

  static void carriesBytes() throws Exception {
    try (Sdk sdk = Sdk.connected(Sdk.options(Sdk.token(3600)))) {
      Sdk.Channel channel = sdk.subscribe("java:bytes");
      byte[] sent = {(byte) 0xff, 0, 1};
      Sdk.<Object>result(done -> channel.subscription.publish(sent, done::accept));
      Sdk.publish("java:bytes", "bare text");
      equal("the data", channel.data(2), List.of(text(sent), "bare text"));
    }
  }

  static void hasManyChannels() throws Exception {
    try (Sdk sdk = Sdk.connected(Sdk.options(Sdk.token(3600)))) {
      List<Sdk.Channel> channels = new ArrayList<>();
      for (int index = 0; index < 60; index++) channels.add(sdk.subscribe("java:many:" + index));
      for (Sdk.Channel channel : channels) Sdk.publish(channel.name, "\"" + channel.name + "\"");
      for (Sdk.Channel channel : channels) equal("the publication", channel.data(1), List.of("\"" + channel.name + "\""));
      Sdk.Channel first = channels.get(0);
      first.subscription.unsubscribe();
      first.unsubscribed.take("the end of a subscription");
      first.begin();
      Sdk.publish(first.name, "1");
      equal("after a second subscription", first.data(1), List.of("1"));
    }
  }

  static void isToldWhatItMayNot() throws Exception {
    try (Sdk sdk = Sdk.connected(Sdk.options(Sdk.token(3600, "java:some")))) {
      Sdk.Channel forbidden = sdk.channel("java:forbidden");
      forbidden.subscription.subscribe();
      equal("a subscription", forbidden.unsubscribed.take("the end of a subscription"), 103);
      equal("a publication", Sdk.code(done -> sdk.client.publish("java:forbidden", bytes("1"), done::accept)), 103);
      equal("presence", Sdk.code(done -> sdk.client.presence("java:some", done::accept)), 108);
      equal("a call", Sdk.code(done -> sdk.client.rpc("method", bytes("{}"), done::accept)), 108);
    }
  }

  static void seesWhoIsThere() throws Exception {
    try (Sdk here = Sdk.connected(Sdk.options(Sdk.tokenOf("here")));
        Sdk there = Sdk.connected(Sdk.options(Sdk.tokenOf("there")))) {
      Sdk.Channel room = here.subscribe("java:room");
      equal("who came", room.changes.take("a join"), "join here");
      Sdk.Channel other = there.subscribe("java:room");
      equal("who came", room.changes.take("a join"), "join there");
      var clients = Sdk.presence(room).getClients().values().stream();
      List<String> seen = clients.map(info -> info.getUser() + " " + text(info.getConnInfo())).sorted().toList();
      equal("who is there", seen, List.of("here {\"name\":\"here\"}", "there {\"name\":\"there\"}"));
      var stats = Sdk.presenceStats(there, "java:room");
      equal("how many", List.of(stats.getNumClients(), stats.getNumUsers()), List.of(2, 2));
      other.subscription.unsubscribe();
      equal("who went", room.changes.take("a leave"), "leave there");
    }
  }

  static void leavesWithAnInvalidToken() throws Exception {
    try (Sdk sdk = new Sdk(setup.url, Sdk.options("no token"))) {
      sdk.client.connect();
      equal("the code", sdk.disconnected.take("the end"), 3500);
    }
  }

  /** Code 3: the size limit. This version of the SDK comes back after it. */
  static void isClosedWithAMessageOverTheLimit() throws Exception {
    try (Sdk sdk = Sdk.connected(Sdk.options(Sdk.token(3600)))) {
      sdk.client.publish("java:one", bytes("\"" + "x".repeat(200_000) + "\""), (failure, result) -> {});
      int code = sdk.connecting.take("the end");
      equal("the code, after " + sdk.errors.poll(100), code, 3);
    }
  }

  static void renewsItsToken() throws Exception {
    AtomicInteger count = new AtomicInteger();
    try (Sdk sdk = Sdk.connected(tokens(() -> count.getAndIncrement() == 0 ? Sdk.token(5) : Sdk.token(3600), ""))) {
      Sdk.Channel channel = sdk.subscribe("java:token");
      Thread.sleep(6000);
      Sdk.publish("java:token", "1");
      equal("the publication", channel.data(1), List.of("1"));
      equal("tokens, and other connections", List.of(count.get(), sdk.connecting.size()), List.of(2, 0));
    }
  }

  static void replacesAnOldToken() throws Exception {
    AtomicInteger count = new AtomicInteger();
    Options options = tokens(() -> Sdk.token(3600 + count.getAndIncrement()), Sdk.token(-10));
    try (Sdk sdk = Sdk.connected(options)) {
      equal("tokens", count.get(), 1);
    }
  }

  static Options tokens(java.util.function.Supplier<String> next, String first) {
    Options options = Sdk.options(first);
    options.setTokenGetter(new ConnectionTokenGetter() {
      @Override
      public void getConnectionToken(ConnectionTokenEvent event, TokenCallback callback) {
        callback.Done(null, next.get());
      }
    });
    return options;
  }

  /** Connects to a server that closes each connection, since not every code is easily provoked. */
  static void heedsCloseCodes() throws Exception {
    List<String> wrong = new ArrayList<>();
    for (int code : IntStream.concat(IntStream.of(setup.back), IntStream.of(setup.away)).toArray()) {
      Options options = Sdk.options(Sdk.token(3600));
      options.setMinReconnectDelay(60_000);
      options.setMaxReconnectDelay(60_000);
      try (Sdk sdk = new Sdk(setup.closing + "/" + code, options)) {
        sdk.client.connect();
        Integer seen = sdk.disconnected.poll(1500);
        boolean isBack = seen == null && sdk.client.getState() == ClientState.CONNECTING;
        boolean isExpected = IntStream.of(setup.back).anyMatch(back -> back == code);
        if (isBack != isExpected) wrong.add(code + (isBack ? ": back" : ": away"));
      }
    }
    // This version comes back after it, to exceed the limit again.
    equal("what is otherwise", wrong, List.of("1009: back"));
  }

  /** It needs more than a minute: see docs/clients.md. */
  static void noticesSilence() throws Exception {
    Options options = Sdk.options(Sdk.token(3600));
    options.setMaxServerPingDelay(500);
    try (Sdk sdk = Sdk.connected(options)) {
      Sdk.Channel channel = sdk.subscribe("java:silence");
      Sdk.publish("java:silence", "1");
      equal("a publication", channel.data(1), List.of("1"));
      Sdk.signal("STOP", setup.pids[0]);
      try {
        equal("the code: no ping", sdk.connecting.take("no ping"), 2);
        Sdk.publish("java:silence", "2");
        long began = System.nanoTime();
        sdk.connected.take("another connection", 90_000);
        System.err.println("java: connected again after " + (System.nanoTime() - began) / 1_000_000 + " ms");
        equal("the publication that it missed", channel.data(1), List.of("2"));
      } finally {
        Sdk.signal("CONT", setup.pids[0]);
      }
    }
  }

  /** Nothing is lost or repeated while the instance of a client ends. */
  static void survives(String signal, int instance, int code) throws Exception {
    try (Sdk sdk = Sdk.connected(Sdk.options(Sdk.token(3600)))) {
      Sdk.Channel channel = sdk.subscribe("java:end:" + instance);
      List<String> expected = new ArrayList<>();
      for (int number = 1; number <= 60; number++) {
        if (number == 20) Sdk.signal(signal, setup.pids[instance]);
        Sdk.publish(channel.name, String.valueOf(number));
        expected.add(String.valueOf(number));
        Thread.sleep(20);
      }
      equal("each once and in order", channel.data(60), expected);
      equal("the code", sdk.connecting.take("the end"), code);
    }
  }

  static byte[] bytes(String text) {
    return text.getBytes(java.nio.charset.StandardCharsets.UTF_8);
  }

  /** Bytes as text; those that are none as Latin-1. */
  static String text(byte[] bytes) {
    String text = new String(bytes, java.nio.charset.StandardCharsets.UTF_8);
    return text.indexOf('\ufffd') < 0 ? text : new String(bytes, java.nio.charset.StandardCharsets.ISO_8859_1);
  }

  static void equal(String what, Object seen, Object expected) {
    if (!Objects.equals(seen, expected)) throw new AssertionError(what + ": " + seen + " instead of " + expected);
  }
}
