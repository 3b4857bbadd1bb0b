"""A Cog project that calls other models with Replicate's client, one after the other."""

import json

import replicate
from cog import BaseRunner, Input, current_scope
from replicate.exceptions import ModelError


class Runner(BaseRunner):
    def run(
        self,
        calls: str = Input(description="JSON: a list of [model, input]", default="[]"),
        catch: bool = Input(description="Go on when a call fails", default=False),
        tell: bool = Input(description="Give the token away", default=False),
    ) -> dict:
        outputs = []
        for model, given in json.loads(calls):
            print("asks", model)
            try:
                output = replicate.run(model, input=given)
            except ModelError as error:
                if not catch:
                    raise
                outputs.append({"error": error.prediction.error})
                continue
            if not isinstance(output, (str, dict, list)):
                output = [str(part) for part in output]
            outputs.append(output)
        token = current_scope().context["replicate_api_token"]
        return {"outputs": outputs, "token": token if tell else None}
