import java.util.List;
import redis.clients.jedis.RedisClient;

/** Jedis: connect, wait for a line, publish, say what came of it. */
public class JedisClient {
    public static void main(String[] arguments) throws Exception {
        RedisClient client = RedisClient.create("127.0.0.1", Integer.parseInt(arguments[0]));
        client.fcall("livebridge_publish", List.of("live"), List.of("first"));
        System.out.println("ready");
        System.in.read();
        List<String> second = arguments[1].equals("id") ? List.of("second", "id", "order-17") : List.of("second");
        try {
            client.fcall("livebridge_publish", List.of("live"), second);
            System.out.println("answered");
        } catch (Exception error) {
            System.out.println("raised " + error);
        }
        System.exit(0);
    }
}
