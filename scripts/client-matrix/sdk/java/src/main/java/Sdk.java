import com.google.gson.Gson;
import io.github.centrifugal.centrifuge.Client;
import io.github.centrifugal.centrifuge.ConnectedEvent;
import io.github.centrifugal.centrifuge.ConnectingEvent;
import io.github.centrifugal.centrifuge.DisconnectedEvent;
import io.github.centrifugal.centrifuge.ErrorEvent;
import io.github.centrifugal.centrifuge.EventListener;
import io.github.centrifugal.centrifuge.HistoryOptions;
import io.github.centrifugal.centrifuge.HistoryResult;
import io.github.centrifugal.centrifuge.JoinEvent;
import io.github.centrifugal.centrifuge.LeaveEvent;
import io.github.centrifugal.centrifuge.Options;
import io.github.centrifugal.centrifuge.PresenceResult;
import io.github.centrifugal.centrifuge.PresenceStatsResult;
import io.github.centrifugal.centrifuge.PublicationEvent;
import io.github.centrifugal.centrifuge.ReplyError;
import io.github.centrifugal.centrifuge.SubscribedEvent;
import io.github.centrifugal.centrifuge.Subscription;
import io.github.centrifugal.centrifuge.SubscriptionEventListener;
import io.github.centrifugal.centrifuge.SubscriptionOptions;
import io.github.centrifugal.centrifuge.UnsubscribedEvent;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.BiConsumer;
import java.util.function.Consumer;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/** A client whose events can be waited for, tokens, and what publishes beside it. */
class Sdk implements AutoCloseable {
  private static final int PATIENCE = 15_000;
  private static final HttpClient HTTP = HttpClient.newHttpClient();

  /** Events that have not been looked at. */
  static class Events<T> {
    private final LinkedBlockingQueue<T> queue = new LinkedBlockingQueue<>();

    T take(String what) throws InterruptedException {
      return take(what, PATIENCE);
    }

    T take(String what, int milliseconds) throws InterruptedException {
      T event = poll(milliseconds);
      if (event == null) throw new AssertionError("not in time: " + what);
      return event;
    }

    T poll(int milliseconds) throws InterruptedException {
      return queue.poll(milliseconds, TimeUnit.MILLISECONDS);
    }

    int size() {
      return queue.size();
    }
  }

  /** A subscription and its events. */
  static class Channel extends SubscriptionEventListener {
    final String name;
    final Events<Integer> subscribed = new Events<>();
    final Events<Integer> unsubscribed = new Events<>();
    final Events<String> publications = new Events<>();
    final Events<String> changes = new Events<>();
    Subscription subscription;

    Channel(String name) {
      this.name = name;
    }

    /** Subscribes, and returns when messages arrive. */
    void begin() throws InterruptedException {
      subscribed.queue.clear();
      subscription.subscribe();
      subscribed.take("a subscription");
    }

    /** The data of the next publications. */
    List<String> data(int count) throws InterruptedException {
      List<String> found = new ArrayList<>();
      while (found.size() < count) found.add(publications.take(count + " publications of " + name + ", not only " + found));
      return found;
    }

    @Override
    public void onSubscribed(Subscription of, SubscribedEvent event) {
      subscribed.queue.add(0);
    }

    @Override
    public void onUnsubscribed(Subscription of, UnsubscribedEvent event) {
      unsubscribed.queue.add(event.getCode());
    }

    @Override
    public void onPublication(Subscription of, PublicationEvent event) {
      publications.queue.add(Checks.text(event.getData()));
    }

    @Override
    public void onJoin(Subscription of, JoinEvent event) {
      changes.queue.add("join " + event.getInfo().getUser());
    }

    @Override
    public void onLeave(Subscription of, LeaveEvent event) {
      changes.queue.add("leave " + event.getInfo().getUser());
    }
  }

  final Events<Integer> connecting = new Events<>();
  final Events<Integer> connected = new Events<>();
  final Events<Integer> disconnected = new Events<>();
  final Events<String> errors = new Events<>();
  final Client client;

  Sdk(String url, Options options) {
    client = new Client(url, options, new EventListener() {
      @Override
      public void onConnecting(Client of, ConnectingEvent event) {
        connecting.queue.add(event.getCode());
      }

      @Override
      public void onConnected(Client of, ConnectedEvent event) {
        connected.queue.add(0);
      }

      @Override
      public void onDisconnected(Client of, DisconnectedEvent event) {
        disconnected.queue.add(event.getCode());
      }

      @Override
      public void onError(Client of, ErrorEvent event) {
        errors.queue.add(event.getError().toString());
      }
    });
  }

  static Sdk connected(Options options) throws InterruptedException {
    Sdk sdk = new Sdk(Checks.setup.url, options);
    sdk.client.connect();
    sdk.connecting.take("connecting");
    sdk.connected.take("connected");
    return sdk;
  }

  static Options options(String token) {
    Options options = new Options();
    options.setToken(token);
    options.setMinReconnectDelay(50);
    options.setMaxReconnectDelay(200);
    return options;
  }

  /** A channel that is not subscribed to yet. */
  Channel channel(String name) throws Exception {
    Channel channel = new Channel(name);
    SubscriptionOptions options = new SubscriptionOptions();
    options.setJoinLeave(true);
    channel.subscription = client.newSubscription(name, options, channel);
    return channel;
  }

  Channel subscribe(String name) throws Exception {
    Channel channel = channel(name);
    channel.begin();
    return channel;
  }

  @Override
  public void close() throws InterruptedException {
    client.close(1000);
  }

  /** The result of a request, which is called with what its callback does. */
  static <T> T result(Consumer<BiConsumer<Throwable, T>> request) throws Exception {
    CompletableFuture<T> answer = new CompletableFuture<>();
    request.accept((failure, result) -> {
      if (failure != null) answer.completeExceptionally(failure);
      else answer.complete(result);
    });
    return answer.get(PATIENCE, TimeUnit.MILLISECONDS);
  }

  /** The code with which a request fails. */
  static <T> int code(Consumer<BiConsumer<Throwable, T>> request) throws Exception {
    try {
      throw new AssertionError("it did not fail: " + result(request));
    } catch (ExecutionException failure) {
      if (failure.getCause() instanceof ReplyError error) return error.getCode();
      throw failure;
    }
  }

  static HistoryResult history(Channel channel, HistoryOptions options) throws Exception {
    return result(done -> channel.subscription.history(options, done::accept));
  }

  static PresenceResult presence(Channel channel) throws Exception {
    return result(done -> channel.subscription.presence(done::accept));
  }

  static PresenceStatsResult presenceStats(Sdk sdk, String channel) throws Exception {
    return result(done -> sdk.client.presenceStats(channel, done::accept));
  }

  /** A token (HS256) that holds for so many seconds, for all channels if none is named. */
  static String token(int seconds, String... channels) {
    return sign(seconds, channels.length == 0 ? new String[] {"*"} : channels, new HashMap<>());
  }

  static String tokenOf(String user) {
    return sign(3600, new String[] {"*"}, new HashMap<>(Map.of("sub", user, "info", Map.of("name", user))));
  }

  private static String sign(int seconds, String[] channels, Map<String, Object> claims) {
    claims.put("exp", System.currentTimeMillis() / 1000 + seconds);
    claims.put("livebridge", Map.of("subscribe", channels, "publish", channels));
    Base64.Encoder encoder = Base64.getUrlEncoder().withoutPadding();
    String text = encoder.encodeToString(Checks.bytes("{\"alg\":\"HS256\"}")) + "."
        + encoder.encodeToString(Checks.bytes(new Gson().toJson(claims)));
    try {
      Mac mac = Mac.getInstance("HmacSHA256");
      mac.init(new SecretKeySpec(Checks.bytes(Checks.setup.secret), "HmacSHA256"));
      return text + "." + encoder.encodeToString(mac.doFinal(Checks.bytes(text)));
    } catch (java.security.GeneralSecurityException error) {
      throw new IllegalStateException(error);
    }
  }

  /** Publishes at the last instance, and insists on it. */
  static void publish(String channel, String body) throws Exception {
    HttpRequest request = HttpRequest.newBuilder(URI.create(Checks.setup.http + "/publish?channel=" + channel))
        .header("Authorization", "Bearer " + token(3600)).POST(HttpRequest.BodyPublishers.ofString(body)).build();
    Checks.equal("a publish", HTTP.send(request, HttpResponse.BodyHandlers.discarding()).statusCode(), 200);
  }

  static void signal(String name, int pid) throws Exception {
    Checks.equal("a signal", new ProcessBuilder("kill", "-" + name, String.valueOf(pid)).start().waitFor(), 0);
  }
}
