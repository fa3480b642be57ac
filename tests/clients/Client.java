// Each operation of a service by Java's own HttpClient: `java Client.java ADDRESS KEY NAME [HTTP_1_1]`.
// Prints a line an operation: its name, the status, and the body.

import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public class Client {
    static HttpClient client;
    static String address;
    static String key;

    public static void main(String[] arguments) throws Exception {
        address = arguments[0];
        key = arguments[1];
        HttpClient.Builder builder = HttpClient.newBuilder();
        if (arguments.length > 3) builder.version(HttpClient.Version.valueOf(arguments[3]));
        client = builder.build();
        post("save", "/store/save", "'file': 'list', 'value': {'Apples': 8}");
        post("merge", "/store/save", "'file': 'list', 'options': 'merge', 'value': {'Oranges': 10}");
        post("load", "/store/load", "'file': 'list'");
        post("list", "/store/load", "'file': '', 'options': 'list'");
        post("large", "/store/save", "'file': 'large', 'value': '" + "x".repeat(200_000) + "'");
        post("delete", "/store/save", "'file': 'list', 'options': 'delete', 'value': null");
        post("absent", "/store/load", "'file': 'list'");
        String facts = upload(arguments[2]);
        String link = "/files/" + fact(facts, "folder") + "/" + fact(facts, "id") + ".txt";
        send("download", HttpRequest.newBuilder(URI.create(address + link)));
        send("part", HttpRequest.newBuilder(URI.create(address + link)).header("Range", "bytes=-5"));
    }

    static void post(String operation, String path, String fields) throws Exception {
        String body = ("{'key': '" + key + "', " + fields + "}").replace('\'', '"');
        send(operation, HttpRequest.newBuilder(URI.create(address + path))
            .header("Content-Type", "application/json")
            .POST(BodyPublishers.ofString(body)));
    }

    static String upload(String name) throws Exception {
        String boundary = "----a-boundary-of-java";
        String head = "--" + boundary + "\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\n" + key + "\r\n--" + boundary
            + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"" + name
            + "\"\r\nContent-Type: text/plain\r\n\r\n";
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        body.write(head.getBytes(StandardCharsets.UTF_8));
        body.write("some media".repeat(20_000).getBytes(StandardCharsets.UTF_8));
        body.write(("\r\n--" + boundary + "--\r\n").getBytes(StandardCharsets.UTF_8));
        return send("upload", HttpRequest.newBuilder(URI.create(address + "/upload-2"))
            .header("Content-Type", "multipart/form-data; boundary=" + boundary)
            .POST(BodyPublishers.ofByteArray(body.toByteArray())));
    }

    static String send(String operation, HttpRequest.Builder request) throws Exception {
        HttpResponse<String> response = client.send(request.build(), BodyHandlers.ofString(StandardCharsets.UTF_8));
        System.out.println(operation + " " + response.statusCode() + " " + response.body());
        return response.body();
    }

    static String fact(String facts, String name) {
        Matcher matcher = Pattern.compile("\"" + name + "\":\\s*\"([0-9a-f]+)\"").matcher(facts);
        if (!matcher.find()) throw new IllegalStateException(facts);
        return matcher.group(1);
    }
}
