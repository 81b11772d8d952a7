import java.io.IOException;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;
import okhttp3.Response;

/** Publishes three messages with OkHttp: PublishOkHttp URL plain|key. */
public class PublishOkHttp {
    public static void main(String[] arguments) {
        OkHttpClient client = new OkHttpClient();
        for (int number = 0; number < 3; number++) {
            Request.Builder request = new Request.Builder().url(arguments[0]);
            request.post(RequestBody.create(("n" + number).getBytes()));
            if (arguments[1].equals("key")) request.header("Idempotency-Key", "message-" + number);
            try (Response response = client.newCall(request.build()).execute()) {
                response.body().bytes();
                System.out.println(response.code());
            } catch (IOException error) {
                System.out.println("raised " + error);
            }
        }
        System.exit(0);
    }
}
