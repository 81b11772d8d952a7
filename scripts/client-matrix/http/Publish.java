import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Publishes three messages with HttpURLConnection or java.net.http: Publish LIBRARY URL plain|key. */
public class Publish {
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    private static int connection(String url, String key, String body) throws IOException {
        HttpURLConnection connection = (HttpURLConnection) URI.create(url).toURL().openConnection();
        connection.setRequestMethod("POST");
        connection.setDoOutput(true);
        if (key != null) connection.setRequestProperty("Idempotency-Key", key);
        connection.getOutputStream().write(body.getBytes());
        int status = connection.getResponseCode();
        connection.getInputStream().readAllBytes();
        return status;
    }

    private static int client(String url, String key, String body) throws IOException, InterruptedException {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url)).POST(HttpRequest.BodyPublishers.ofString(body));
        if (key != null) request.header("Idempotency-Key", key);
        return CLIENT.send(request.build(), HttpResponse.BodyHandlers.ofString()).statusCode();
    }

    public static void main(String[] arguments) throws Exception {
        boolean old = arguments[0].equals("HttpURLConnection");
        for (int number = 0; number < 3; number++) {
            String key = arguments[2].equals("key") ? "message-" + number : null;
            String body = "n" + number;
            try {
                System.out.println(old ? connection(arguments[1], key, body) : client(arguments[1], key, body));
            } catch (IOException error) {
                System.out.println("raised " + error);
            }
        }
        System.exit(0);
    }
}
