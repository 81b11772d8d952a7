#!/usr/bin/env bash
# Java, OkHttp 5.1.0, and a POST whose connection ends before the answer
#
# Guess:  it sends a POST again only if the host's name has another address to try; for a name with
#         one address it raises, on every connection.
# Seen:   on a connection that it has used before, it sends the POST again to the same address, and
#         the program is told of one success. On a new connection it raises.
# So:     a publish needs an Idempotency-Key, or retryOnConnectionFailure(false).
source "$(dirname "$0")/common.bash"
command -v mvn >/dev/null && command -v javac >/dev/null || { echo "needs a JDK and Maven"; exit 77; }

cat >"$folder/pom.xml" <<'XML'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId><artifactId>finding</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>com.squareup.okhttp3</groupId><artifactId>okhttp-jvm</artifactId><version>5.1.0</version>
  </dependency></dependencies>
</project>
XML
cat >"$folder/Run.java" <<'JAVA'
import java.io.*;
import java.net.*;
import java.util.concurrent.atomic.AtomicInteger;
import okhttp3.*;

public class Run {
    static final AtomicInteger requests = new AtomicInteger();

    /** Serves a connection; closes it instead of answering request number `lost`. */
    static void serve(Socket socket, int lost) {
        try (socket) {
            BufferedReader reader = new BufferedReader(new InputStreamReader(socket.getInputStream()));
            while (true) {
                int length = 0;
                String line = reader.readLine();
                if (line == null) return;
                while (!line.isEmpty()) {
                    if (line.toLowerCase().startsWith("content-length:")) length = Integer.parseInt(line.substring(15).trim());
                    line = reader.readLine();
                }
                for (int read = 0; read < length; read++) reader.read();
                if (requests.incrementAndGet() == lost) return;
                socket.getOutputStream().write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".getBytes());
            }
        } catch (IOException ended) {
            // The client has closed its side.
        }
    }

    static String post(OkHttpClient client, String url) {
        Request request = new Request.Builder().url(url).post(RequestBody.create("body".getBytes())).build();
        try (Response response = client.newCall(request).execute()) {
            response.body().bytes();
            return "answered";
        } catch (IOException error) {
            return "raised";
        }
    }

    public static void main(String[] arguments) throws IOException {
        int lost = Integer.parseInt(arguments[0]);
        ServerSocket listener = new ServerSocket(0, 50, InetAddress.getByName("127.0.0.1"));
        Thread thread = new Thread(() -> {
            while (true) {
                try {
                    Socket socket = listener.accept();
                    new Thread(() -> serve(socket, lost)).start();
                } catch (IOException ended) {
                    return;
                }
            }
        });
        thread.setDaemon(true);
        thread.start();
        OkHttpClient client = new OkHttpClient();
        String said = "";
        for (int call = 0; call < lost; call++) said = post(client, "http://127.0.0.1:" + listener.getLocalPort() + "/");
        System.out.println(said + " after " + (requests.get() - lost + 1) + " of it");
        System.exit(0);
    }
}
JAVA
(cd "$folder" && mvn --quiet --batch-mode dependency:copy-dependencies -DoutputDirectory=libraries &&
    javac -cp 'libraries/*' Run.java) >"$folder/build" 2>&1 || { cat "$folder/build" >&2; exit 1; }
expect "a POST on a new connection" "$(java -cp "$folder:$folder/libraries/*" Run 1)" "raised after 1 of it"
expect "a POST on a kept connection" "$(java -cp "$folder:$folder/libraries/*" Run 2)" "answered after 2 of it"
