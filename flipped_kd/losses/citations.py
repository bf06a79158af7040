"""BibTeX of the objectives, as a model card prints it."""

MARGIN_MSE = """@misc{hofstaetter2020,
    title = {Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation},
    author = {Hofst{\\"a}tter, Sebastian and Althammer, Sophia and Schr{\\"o}der, Michael and Sertkan, Mete and
              Hanbury, Allan},
    year = {2020},
    eprint = {2010.02666},
    archivePrefix = {arXiv},
}"""

RANKNET = """@inproceedings{burges2005,
    title = {Learning to Rank using Gradient Descent},
    author = {Burges, Chris and Shaked, Tal and Renshaw, Erin and Lazier, Ari and Deeds, Matt and Hamilton, Nicole and
              Hullender, Greg},
    booktitle = {Proceedings of the 22nd International Conference on Machine Learning},
    year = {2005},
}"""

PLACKETT_LUCE = """@misc{bassam2025,
    title = {PLD: A Choice-Theoretic List-Wise Knowledge Distillation},
    author = {Bassam, Ejafa and Zhu, Dawei and Bian, Kaigui},
    year = {2025},
    eprint = {2506.12542},
    archivePrefix = {arXiv},
}"""

SINKHORN = """@inproceedings{cui2024,
    title = {Sinkhorn Distance Minimization for Knowledge Distillation},
    author = {Cui, Xiao and Qin, Yulei and Gao, Yuting and Zhang, Enwei and Xu, Zihan and Wu, Tong and Li, Ke and
              Sun, Xing and Zhou, Wengang and Li, Houqiang},
    booktitle = {Proceedings of the 2024 Joint International Conference on Computational Linguistics, Language
                 Resources and Evaluation (LREC-COLING 2024)},
    year = {2024},
    eprint = {2402.17110},
    archivePrefix = {arXiv},
}"""

COSENT = """@article{huang2024,
    title = {CoSENT: Consistent Sentence Embedding via Similarity Ranking},
    author = {Huang, Xiang and Peng, Hao and Zou, Dongcheng and Liu, Zhiwei and Li, Jianxin and Liu, Kay and Wu, Jia
              and Su, Jianlin and Yu, Philip S.},
    journal = {IEEE/ACM Transactions on Audio, Speech, and Language Processing},
    year = {2024},
    doi = {10.1109/TASLP.2024.3402087},
}"""

ANGLE = """@misc{li2023,
    title = {AnglE-optimized Text Embeddings},
    author = {Li, Xianming and Li, Jing},
    year = {2023},
    eprint = {2309.12871},
    archivePrefix = {arXiv},
}"""

FLIPPED_CITATION = """@inproceedings{flipped2025,
    title = {Flipping Knowledge Distillation: Leveraging Small Models' Expertise to Enhance LLMs in Text Matching},
    author = {Li, Mingzhe and Xiang, Jing and Zhang, Qishen and Wan, Kaiyang and Chen, Xiuying},
    booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics},
    year = {2025},
    eprint = {2507.05617},
    archivePrefix = {arXiv},
}"""

DIST = """@inproceedings{huang2022,
    title = {Knowledge Distillation from A Stronger Teacher},
    author = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2022},
    eprint = {2205.10536},
    archivePrefix = {arXiv},
}"""
