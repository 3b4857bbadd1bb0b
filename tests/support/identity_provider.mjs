// An OpenID provider for tests. The environment variables: PORT, CALLBACK, AFTER_LOGOUT, and CONTROL, the path of a JSON
// file that is read at each request: {"groups": {"anna": ["/ml"]}, "audience": "other"}.

import { readFileSync } from "node:fs";
import { exportJWK, generateKeyPair, importJWK, SignJWT } from "jose";
import { Provider } from "oidc-provider";

const { PORT, CALLBACK, AFTER_LOGOUT, CONTROL } = process.env;
const control = () => JSON.parse(readFileSync(CONTROL, "utf8"));
const { privateKey } = await generateKeyPair("RS256", { extractable: true });
const key = { ...(await exportJWK(privateKey)), kid: "key-1", alg: "RS256", use: "sig" };

const provider = new Provider(`http://127.0.0.1:${PORT}`, {
  clients: [{
    client_id: "appliance",
    client_secret: "a secret & more",
    redirect_uris: [CALLBACK],
    post_logout_redirect_uris: [AFTER_LOGOUT],
  }],
  jwks: { keys: [key] },
  cookies: { keys: ["for tests"] },
  pkce: { required: () => true },
  scopes: ["openid", "profile", "groups"],
  claims: { openid: ["sub"], profile: ["preferred_username"], groups: ["groups"] },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: `subject-${id}`, preferred_username: id, groups: control().groups[id] ?? [] }),
  }),
});

// Replaces the audience of ID tokens, with a valid signature.
provider.use(async (context, next) => {
  await next();
  const { audience } = control();
  if (context.path !== "/token" || !audience || !context.body?.id_token) return;
  const claims = JSON.parse(Buffer.from(context.body.id_token.split(".")[1], "base64url"));
  const token = new SignJWT({ ...claims, aud: audience }).setProtectedHeader({ alg: "RS256", kid: "key-1" });
  context.body = { ...context.body, id_token: await token.sign(await importJWK(key, "RS256")) };
});

provider.listen(Number(PORT), "127.0.0.1");
