// What every client does with the host; prints what it got as JSON.
export async function use(client, version, callTool) {
  const tools = (await client.listTools()).tools.map((tool) => tool.name);
  const said = await callTool({ name: "echo_say", arguments: { message: "hi" } });
  const wrong = await callTool({ name: "echo_say", arguments: { message: 5 } });
  const progress = [];
  // The SDK drops progress that it reads together with the answer; so the answer is not given before it is there.
  const onprogress = (told) => {
    progress.push(told.message);
    callTool({ name: "misbehave_release", arguments: {} });
  };
  await callTool({ name: "misbehave_hold", arguments: {} }, { onprogress });
  const resources = (await client.listResources()).resources.map((resource) => resource.uri);
  const got = { version: version(), tools, said: said.structuredContent, wrong: wrong.isError, progress, resources };
  await client.close();
  console.log(JSON.stringify(got));
}
