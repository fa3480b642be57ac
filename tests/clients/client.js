// Each operation of a service by fetch, for Node and for browsers: a function of [address, key, name].
// Returns a line an operation: its name, the status, and the body.
async ([address, key, name]) => {
    const lines = [];
    const send = async (operation, path, options) => {
        const reply = await fetch(address + path, options);
        const body = await reply.text();
        lines.push(`${operation} ${reply.status} ${body}`);
        return body;
    };
    const post = (operation, path, fields) =>
        send(operation, path, {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ key, ...fields }),
        });
    await post("save", "/store/save", { file: "list", value: { Apples: 8 } });
    await post("merge", "/store/save", { file: "list", options: "merge", value: { Oranges: 10 } });
    await post("load", "/store/load", { file: "list" });
    await post("list", "/store/load", { file: "", options: "list" });
    await post("large", "/store/save", { file: "large", value: "x".repeat(200_000) });
    await post("delete", "/store/save", { file: "list", options: "delete", value: null });
    await post("absent", "/store/load", { file: "list" });
    const form = new FormData();
    form.append("key", key);
    form.append("file", new Blob(["some media".repeat(20_000)], { type: "text/plain" }), name);
    const { folder, id } = JSON.parse(await send("upload", "/upload-2", { method: "POST", body: form })).data;
    const link = `/files/${folder}/${id}.txt`;
    await send("download", link);
    await send("part", link, { headers: { Range: "bytes=-5" } });
    return lines;
};
