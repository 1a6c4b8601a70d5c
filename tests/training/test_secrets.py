"""A run with tokens: they are used, and nothing that is written or logged holds them."""

import logging

from transformers import AutoModelForCausalLM, TrainerCallback


HUB, TEACHER = "hub-secret-0123456789", "teacher-secret-9876543210"


def test_no_byte_of_a_run_holds_a_secret(make_model, make_trainer, lm_rows, tmp_path, monkeypatch, caplog, capfd):
    make_model(1).save_pretrained(tmp_path / "teacher")
    used, logged = [], []
    load = AutoModelForCausalLM.from_pretrained

    def spy(*args, **kwargs):
        used.append(kwargs.pop("token", None))
        return load(*args, **kwargs)

    class Logger(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            logged.extend([str(args.to_dict()), args.to_json_string(), str(args.to_sanitized_dict()), f"{args}"])
            used.append(args.hub_token)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    with caplog.at_level(logging.DEBUG):
        trainer = make_trainer(
            make_model(0),
            str(tmp_path / "teacher"),
            lm_rows,
            hub_token=HUB,
            teacher_model_init_kwargs={"token": TEACHER},
            save_strategy="steps",
            save_steps=1,
            max_steps=2,
            logging_steps=1,
            callbacks=[Logger()],
        )
        trainer.train()
        trainer.save_model()
        trainer.save_state()
        trainer.create_model_card()
    assert used == [TEACHER, HUB]
    printed = capfd.readouterr()
    texts = [*logged, caplog.text, printed.out, printed.err]
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len([file for file in files if file.name == "training_args.bin"]) == 3
    for secret in (HUB, TEACHER):
        assert not any(secret in text for text in texts)
        # torch.save stores what it pickles as it is.
        assert not [file for file in files if secret.encode() in file.read_bytes()]
