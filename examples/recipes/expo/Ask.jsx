import { useFalProxy } from "@fal-proxy/client/react";
import * as ImagePicker from "expo-image-picker";
import { Button, Text, View } from "react-native";

export function Ask({ fal }) {
  const { status, position, result, error, busy, submit, cancel } = useFalProxy(fal, "fal-ai/llava-next");

  async function ask() {
    const { assets } = await ImagePicker.launchImageLibraryAsync();
    if (!assets) return;
    const picture = await (await fetch(assets[0].uri)).blob(); // the client uploads it
    await submit({ image_url: picture, prompt: "What is in this picture?" });
  }

  return (
    <View>
      <Button title="Ask about a picture" onPress={ask} disabled={busy} />
      {busy && <Button title="Cancel" onPress={cancel} />}
      <Text>{status} {position}</Text>
      {status === "done" && <Text>{result.output}</Text>}
      {status === "failed" && <Text accessibilityRole="alert">{error.message}</Text>}
    </View>
  );
}
