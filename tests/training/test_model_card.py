"""The model card: metadata, loading instructions, only measured numbers."""

from huggingface_hub import ModelCard


def test_card_of_a_ternary_student(make_model, make_trainer, lm_rows, tmp_path):
    from hf_bitdistill import BitNetConfig, apply_bitnet

    student, teacher = make_model(0), make_model(1)
    apply_bitnet(student, BitNetConfig())
    student.config.quantization_config = BitNetConfig()
    student.config._name_or_path = "org/base-model"
    teacher.config._name_or_path = "org/teacher-model"
    trainer = make_trainer(student, teacher, lm_rows, max_steps=2, eval_dataset=lm_rows[:2], relation_heads=4)
    trainer.create_model_card()
    before = (tmp_path / "run" / "README.md").read_text()
    assert "## Results" not in before
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card(model_name="my-student", license="apache-2.0", tags="mine", dataset_tags=["glue"])
    card = ModelCard.load(tmp_path / "run" / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert (data["base_model"], data["base_model_relation"]) == ("org/base-model", "quantized")
    assert data["tags"] == ["bitdistill", "distillation", "bitnet", "ternary", "mine"]
    assert (data["license"], data["datasets"], data["pipeline_tag"]) == ("apache-2.0", ["glue"], "text-generation")
    text = card.text
    assert "import hf_bitdistill" in text and "AutoModelForCausalLM.from_pretrained" in text
    assert "2510.13998" in text and "org/teacher-model" in text
    assert f"| eval_loss | {metrics['eval_loss']:.4f} |" in text and "after step 2" in text
    assert "| attention_loss_weight | 100.0 |" in text and "| relation_heads | 4 |" in text
    assert "runtime" not in text and "More information needed" not in text


def test_card_of_a_full_precision_student_claims_nothing_ternary(make_model, make_trainer, class_rows, tmp_path):
    trainer = make_trainer(make_model(0, classes=3), make_model(1, classes=3), class_rows)
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.tags == ["bitdistill", "distillation"]
    assert card.data.base_model is None and "base_model_relation" not in card.data.to_dict()
    assert "import hf_bitdistill" not in card.text and "ternary" not in card.text
    assert card.data.pipeline_tag == "text-classification"


def test_licence_of_a_base_model_in_a_folder(make_model, make_trainer, class_rows, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\ntext\n")
    student = make_model(0, classes=3)
    student.config._name_or_path = str(base)
    trainer = make_trainer(student, make_model(1, classes=3), class_rows)
    for named, expected in ((None, "apache-2.0"), ("mit", "mit")):
        trainer.create_model_card(license=named)
        card = ModelCard.load(tmp_path / "run" / "README.md")
        assert card.data.license == expected and str(base) not in str(card)


def test_the_card_is_of_the_best_weights(make_model, make_trainer, lm_rows):
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 1e-2,
    }
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = make_trainer(make_model(0), make_model(1), lm_rows, eval_dataset=lm_rows, max_steps=3, **options, **best)
    trainer.train()
    assert trainer.state.best_global_step == 1
    facts = trainer.card_facts()
    assert "after step 1" in facts.scores and "| optimizer steps | 1, the best of 3 |" in facts.settings
