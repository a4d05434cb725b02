// Ask a running server with OpenAI's client for Node; print the vectors as JSON.
// node ask.mjs URL: reads {"texts": [...], "model": ...} from stdin. No encoding_format: the client asks for base64.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const asked = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const answer = await client.embeddings.create({ model: asked.model, input: asked.texts });
const short = await client.embeddings.create({ model: asked.model, input: asked.texts, dimensions: 8 });
let refused = 0;
try {
  await client.embeddings.create({ model: "another", input: "a" });
} catch (error) {
  refused = error.status;
}
const vectors = (found) => found.data.map((each) => each.embedding);
console.log(JSON.stringify({ vectors: vectors(answer), short: vectors(short), refused }));
