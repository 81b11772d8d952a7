import io.lettuce.core.ClientOptions;
import io.lettuce.core.RedisClient;
import io.lettuce.core.ScriptOutputType;
import io.lettuce.core.api.sync.RedisCommands;

/** Lettuce: connect, wait for a line, publish, say what came of it. */
public class Lettuce {
    public static void main(String[] arguments) throws Exception {
        RedisClient client = RedisClient.create("redis://127.0.0.1:" + arguments[0]);
        if (arguments[1].equals("off")) {
            client.setOptions(ClientOptions.builder().autoReconnect(false).build());
        }
        RedisCommands<String, String> commands = client.connect().sync();
        String[] keys = {"live"};
        commands.fcall("livebridge_publish", ScriptOutputType.MULTI, keys, "first");
        System.out.println("ready");
        System.in.read();
        String[] second = arguments[1].equals("id") ? new String[] {"second", "id", "order-17"} : new String[] {"second"};
        try {
            commands.fcall("livebridge_publish", ScriptOutputType.MULTI, keys, second);
            System.out.println("answered");
        } catch (Exception error) {
            System.out.println("raised " + error);
        }
        System.exit(0);
    }
}
